"""Programs that are used to develop vadcli and are not part of it."""
