//! Releases, rules, decisions and deployment plans
