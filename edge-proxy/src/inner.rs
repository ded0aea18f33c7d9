//! The session between two proxies, end to end.
