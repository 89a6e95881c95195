//! The lab that the end-to-end tests run in.
