//! Verifies capsules and logs; links no writer
