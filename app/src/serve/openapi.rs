//! The description of the API that `/docs` shows.

use utoipa::openapi::schema::{AllOfBuilder, Schema};
use utoipa::openapi::security::{Http, HttpAuthScheme, SecurityScheme};
use utoipa::openapi::{Ref, RefOr};
use utoipa::{Modify, OpenApi, PartialSchema, ToSchema};

use super::chat::ChatFields;
use super::completions::CompletionFields;
use super::params::SamplingFields;

/// The document but for the paths that routes add.
#[derive(OpenApi)]
#[openapi(
    info(title = "Tread", description = "The OpenAI API for Step-3 and small chat models."),
    paths(super::status::model),
    modifiers(&Key),
    security((), ("key" = []))
)]
pub(super) struct Api;

struct Key;

impl Modify for Key {
    fn modify(&self, api: &mut utoipa::openapi::OpenApi) {
        let scheme = SecurityScheme::Http(Http::new(HttpAuthScheme::Bearer));
        api.components.get_or_insert_default().add_security_scheme("key", scheme);
    }
}

/// A request whose fields are those of several types.
macro_rules! all_of {
    ($(#[$about:meta])* $name:ident: $($part:ty),+) => {
        $(#[$about])*
        pub(super) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                let all = AllOfBuilder::new();
                $(let all = all.item(Ref::from_schema_name(<$part as ToSchema>::name()));)+
                RefOr::T(all.into())
            }
        }

        impl ToSchema for $name {
            fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
                $(
                    schemas.push((<$part as ToSchema>::name().into_owned(), <$part as PartialSchema>::schema()));
                    <$part as ToSchema>::schemas(schemas);
                )+
            }
        }
    };
}

all_of!(
    /// Fields of `/v1/chat/completions`.
    ChatCompletionRequest: ChatFields, SamplingFields
);
all_of!(
    /// Fields of `/v1/completions`.
    CompletionRequest: CompletionFields, SamplingFields
);
