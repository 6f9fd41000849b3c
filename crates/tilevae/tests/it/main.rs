//! What needs a process of its own: files that were damaged on purpose.

mod hostile;
