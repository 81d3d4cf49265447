//! The git remote: packs in, commits recorded, refs moved last
