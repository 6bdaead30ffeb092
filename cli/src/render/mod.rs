//! What a person or a script sees: tables and templates as docker prints them, JSON, and errors.

pub mod convergence;
pub mod error;
pub mod json;
pub mod table;
pub mod template;
