//! Composes the parts behind one port
