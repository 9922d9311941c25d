//! What lies in the bucket, as values and bytes.
