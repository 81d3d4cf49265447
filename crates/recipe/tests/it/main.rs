//! The recipe crate from outside: errors as people see them, and properties of the parsers.

mod lock;
mod recipe;
