//! Inputs from the outside: one file per ecosystem
