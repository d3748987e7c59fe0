//! What kind of failure something is, for the page.

use tread_core::Error;

use crate::protocol::{Failure, FailureKind};

/// Why something did not work.
pub(super) type Failed = Failure;

/// A failure of a kind.
pub(super) fn failed(kind: FailureKind, message: impl Into<String>) -> Failed {
    Failure { message: message.into(), kind }
}

/// A failure without a kind of its own.
pub(super) fn other(message: impl Into<String>) -> Failed {
    failed(FailureKind::Other, message)
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let kind = match &error {
            Error::Capacity(_) => FailureKind::Memory,
            Error::Device(_) => FailureKind::Device,
            _ => FailureKind::Other,
        };
        failed(kind, in_a_browser(&error.to_string()))
    }
}

/// The core's advice names options of the command line, which a browser has not.
pub(super) fn in_a_browser(message: &str) -> String {
    message
        .replace("a shorter --context", "a shorter context")
        .replace("`tread logits --hidden` shows the layer, and `--backend cpu`", "computing it on the CPU")
        .replace(", or start with a longer context", ", or load the model with a longer context")
}

#[cfg(test)]
mod tests {
    use tread_core::Error;

    use crate::protocol::{Failure, FailureKind};

    #[test]
    fn errors_of_the_core_have_kinds_and_advice_for_browsers() {
        for (error, kind) in [
            (
                Error::Capacity("use a shorter --context or smaller steps".into()),
                FailureKind::Memory,
            ),
            (
                Error::Device(
                    "NaN; `tread logits --hidden` shows the layer, and `--backend cpu` may give the right answer".into(),
                ),
                FailureKind::Device,
            ),
            (Error::Config("no".into()), FailureKind::Other),
        ] {
            let failure = Failure::from(error);
            assert_eq!(failure.kind, kind);
            assert!(!failure.message.contains("--"), "{}", failure.message);
        }
    }
}
