//! The boundary between guardian and engine: messages and the shared page.
