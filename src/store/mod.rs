//! One small trait over object stores, one file per backend.
