//! Server-rendered pages
