//! The API over real TLS.
