"""Sources of drafts: one file each, all implementing `drafter.Drafter`."""
