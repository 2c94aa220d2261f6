"""The one place where engines and fleets are made."""
