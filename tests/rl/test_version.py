import subprocess

from rl import version as version_module
from rl.version import commit, version


def test_the_version_is_the_packages(monkeypatch):
    assert version().count(".") == 2
    monkeypatch.setattr(version_module, "_CHECKOUT", version_module.Path("/nowhere"))
    assert commit.__wrapped__() == ""


def test_the_commit_is_that_of_the_checkout_wherever_the_run_is_started(tmp_path, monkeypatch):
    checkout = tmp_path / "checkout"
    git = ["git", "-C", str(checkout), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(checkout)], check=True)
    (checkout / "file").write_text("1")
    subprocess.run([*git, "add", "file"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    monkeypatch.setattr(version_module, "_CHECKOUT", checkout)
    monkeypatch.chdir(tmp_path)
    assert commit.__wrapped__() == head.stdout[:12]
    (checkout / "file").write_text("2")
    assert commit.__wrapped__() == head.stdout[:12] + "-dirty"
