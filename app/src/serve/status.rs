//! What a server says of itself: models, health, metrics, version.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::App;
use super::error::ApiError;
use crate::attention::Status;

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelList {
    object: &'static str,
    data: Vec<ModelCard>,
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ModelCard {
    id: String,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The name under which the server loaded it.
    root: String,
    /// Most tokens of prompt and answer together.
    max_model_len: usize,
}

fn card(app: &App, name: &str) -> ModelCard {
    ModelCard {
        id: name.to_owned(),
        object: "model",
        created: app.started,
        owned_by: "tread",
        root: app.model_name().to_owned(),
        max_model_len: app.options.limits.context_length,
    }
}

/// The models, that is, the names of the one model.
#[utoipa::path(get, path = "/v1/models", tag = "OpenAI", responses((status = 200, body = ModelList)))]
pub(super) async fn models(State(app): State<App>) -> Json<ModelList> {
    let data = app.options.model_names.iter().map(|name| card(&app, name)).collect();
    Json(ModelList { object: "list", data })
}

/// A model.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    tag = "OpenAI",
    params(("model" = String, Path, description = "Its name.")),
    responses((status = 200, body = ModelCard), (status = 404, body = ApiError))
)]
pub(super) async fn model(
    State(app): State<App>,
    Path(name): Path<String>,
) -> Result<Json<ModelCard>, ApiError> {
    app.check_model(Some(&name))?;
    Ok(Json(card(&app, &name)))
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Health {
    /// `ok`, or what is the matter.
    status: &'static str,
}

/// Whether the server lives. It does while the model is loaded; not while a lost device is opened anew, or no attention
/// worker answers.
#[utoipa::path(
    get,
    path = "/health",
    tag = "Operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn health(State(app): State<App>) -> (StatusCode, Json<Health>) {
    match app.engine.status() {
        Status::Ready(_) => said(true, "ok"),
        Status::Loading => said(true, "loading"),
        status => said(false, trouble(&status)),
    }
}

/// Whether the server would take another request now.
#[utoipa::path(
    get,
    path = "/ready",
    tag = "Operation",
    responses((status = 200, body = Health), (status = 503, body = Health))
)]
pub(super) async fn ready(State(app): State<App>) -> (StatusCode, Json<Health>) {
    match app.engine.status() {
        Status::Ready(_) if app.engine.is_full() => said(false, "the queue is full"),
        Status::Ready(_) => said(true, "ok"),
        Status::Loading => said(false, "loading"),
        status => said(false, trouble(&status)),
    }
}

/// Why requests are not served.
fn trouble(status: &Status) -> &'static str {
    match status {
        Status::Loading | Status::Ready(_) => "ok",
        Status::Rebuilding => "the device was lost and is opened anew",
        Status::Draining => "the attention workers take no new requests",
        Status::Away(_) => "no attention worker answers",
        Status::Failed(_) => "the device was lost",
    }
}

fn said(good: bool, status: &'static str) -> (StatusCode, Json<Health>) {
    (if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(Health { status }))
}

/// Metrics for Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operation",
    responses((status = 200, body = String, content_type = "text/plain"))
)]
pub(super) async fn metrics(State(app): State<App>) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], app.metrics.render())
        .into_response()
}

#[derive(Debug, Serialize, ToSchema)]
pub(super) struct Version {
    version: &'static str,
}

/// The version of Tread.
#[utoipa::path(get, path = "/version", tag = "Operation", responses((status = 200, body = Version)))]
pub(super) async fn version() -> Json<Version> {
    Json(Version { version: env!("CARGO_PKG_VERSION") })
}
