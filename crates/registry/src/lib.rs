//! OCI distribution over a store that never overwrites
