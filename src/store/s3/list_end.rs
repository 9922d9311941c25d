//! Whether a list arrived whole. The SDK takes XML that ends early for a shorter list, and an archive of which a part is
//! not seen looks like another one: its head lower, or no data at all.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use aws_sdk_s3::config::interceptors::AfterDeserializationInterceptorContextRef;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;

/// How the root of a list ends, whatever the prefix of its namespace.
const END: &[u8] = b"ListBucketResult>";

/// Looks at the end of the last answer.
#[derive(Clone, Default, Debug)]
pub(super) struct ListEnd(Arc<AtomicBool>);

impl ListEnd {
    /// Whether the last answer ended as lists end.
    pub(super) fn seen(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Intercept for ListEnd {
    fn name(&self) -> &'static str {
        "the end of a list"
    }

    // Before that the body is not in memory yet.
    fn read_after_deserialization(
        &self,
        context: &AfterDeserializationInterceptorContextRef<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response().body().bytes().unwrap_or_default();
        self.0
            .store(body.trim_ascii_end().ends_with(END), Ordering::Relaxed);
        Ok(())
    }
}
