//! Paths and wire types of the HTTP interface
