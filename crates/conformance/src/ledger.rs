//! The ledger suite.
