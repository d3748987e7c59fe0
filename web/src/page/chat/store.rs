//! Conversations in the browser's database, each as the JSON that is also exported.

use js_sys::{Array, Function, Promise};
use leptos::prelude::window;
use wasm_bindgen::prelude::*;
use wasm_bindgen_futures::JsFuture;
use web_sys::{IdbDatabase, IdbObjectStore, IdbOpenDbRequest, IdbRequest, IdbTransactionMode};

const DATABASE: &str = "tread";
const STORE: &str = "conversations";

/// The database.
#[derive(Clone, Debug)]
pub(super) struct Store(IdbDatabase);

impl Store {
    /// Opens it; it is made where there is none.
    pub(super) async fn open() -> Result<Self, JsValue> {
        let factory = window().indexed_db()?.ok_or("this browser has no IndexedDB")?;
        let request: IdbOpenDbRequest = factory.open_with_u32(DATABASE, 1)?;
        let opening = request.clone();
        let make = Closure::once(move || -> Result<(), JsValue> {
            let database: IdbDatabase = opening.result()?.unchecked_into();
            database.create_object_store(STORE).map(|_| ())
        });
        request.set_onupgradeneeded(Some(make.as_ref().unchecked_ref()));
        Ok(Self(result(&request).await?.unchecked_into()))
    }

    /// All that is kept.
    pub(super) async fn all(&self) -> Result<Vec<String>, JsValue> {
        let values = result(&self.store(IdbTransactionMode::Readonly)?.get_all()?).await?;
        Ok(values.unchecked_into::<Array>().iter().filter_map(|value| value.as_string()).collect())
    }

    /// Keeps a conversation in place of the one with its id.
    pub(super) async fn put(&self, id: &str, json: &str) -> Result<(), JsValue> {
        let store = self.store(IdbTransactionMode::Readwrite)?;
        result(&store.put_with_key(&json.into(), &id.into())?).await.map(|_| ())
    }

    /// Forgets a conversation.
    pub(super) async fn delete(&self, id: &str) -> Result<(), JsValue> {
        result(&self.store(IdbTransactionMode::Readwrite)?.delete(&id.into())?).await.map(|_| ())
    }

    fn store(&self, mode: IdbTransactionMode) -> Result<IdbObjectStore, JsValue> {
        self.0.transaction_with_str_and_mode(STORE, mode)?.object_store(STORE)
    }
}

/// What a request brings.
async fn result(request: &IdbRequest) -> Result<JsValue, JsValue> {
    let promise = Promise::new(&mut |done: Function, failed: Function| {
        request.set_onsuccess(Some(&done));
        request.set_onerror(Some(&failed));
    });
    match JsFuture::from(promise).await {
        Ok(_) => request.result(),
        Err(event) => Err(request.error()?.map_or(event, Into::into)),
    }
}
