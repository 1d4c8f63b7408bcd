//! The data plane's language: messages as types, and their fixed layout as bytes. Pure.

pub mod message;
