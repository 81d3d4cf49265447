//! Facts in SQL, signed and Merkle-hashed in the transaction that makes them true
