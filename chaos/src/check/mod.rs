//! Checkers: one property a file. They see only what guests saw.

pub mod register;
