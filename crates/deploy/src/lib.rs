//! The local target: instances, fronts, switches
