"""Where drafts come from: one file per source, all behind `drafter.Drafter`."""
