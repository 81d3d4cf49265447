//! C2SP tlog-tiles: Merkle tree, tiles, notes, checkpoints and proofs
