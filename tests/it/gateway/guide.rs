//! docs/http.md: its sessions run as they are printed.
