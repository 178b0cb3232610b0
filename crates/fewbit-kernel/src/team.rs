//! A team of persistent threads that share out numbered tasks.

/// Persistent threads.
pub struct Team {}
