//! Single courses, event by event.
