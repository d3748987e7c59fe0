//! Answers of nano's template and of made-up events.
