//! Namespaces, mounts, limits: the only unsafe code
