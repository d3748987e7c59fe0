//! Models of this machine: dropped on the page, and kept in the browser.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use tread_tests::browser::Browser;
use tread_tests::files::Files;
use tread_tests::write::Gguf;

use super::chat::{ANSWERS, say};
use super::{dist, native, native_of, show, tab};

const PROMPT: &str = "Who goes there?";

/// Drops files on the page's field for them, as a hand with a mouse does.
#[track_caller]
fn drop_files(browser: &Browser, files: &[PathBuf]) {
    show(browser, "models");
    browser.until("document.querySelector('.drop')");
    let middle = "
        const field = document.querySelector('.drop');
        field.scrollIntoView({ block: 'center' });
        const { x, y, width, height } = field.getBoundingClientRect();
        return [x + width / 2, y + 10];";
    let place = browser.run(middle, &Value::Null);
    let drag = |kind: &str| {
        let data = json!({ "items": [], "files": files, "dragOperationsMask": 1 });
        let event = json!({ "type": kind, "x": place[0], "y": place[1], "data": data });
        browser.devtools("Input.dispatchDragEvent", &event);
    };
    drag("dragEnter");
    drag("dragOver");
    browser.until("document.querySelector('.drop').classList.contains('drop-over')");
    drag("drop");
    browser.until("!document.querySelector('.drop').classList.contains('drop-over')");
}

/// Asks in a new conversation, always for the likeliest; the answer's words.
#[track_caller]
fn ask(browser: &Browser, prompt: &str, tokens: usize) -> String {
    browser.click("[data-testid=model-chat]");
    browser.until("document.querySelector('[data-testid=composer]')");
    browser.click("[data-testid=settings]");
    let set = "
        for (const [name, value] of args) {
            const label = [...document.querySelectorAll('dialog[open] label')].find((label) => label.innerText.startsWith(name));
            const input = label.querySelector('input');
            input.value = value;
            input.dispatchEvent(new Event('change', { bubbles: true }));
        }
        document.querySelector('dialog[open]').close();";
    browser.until("document.querySelector('dialog[open]')");
    browser.run(set, &json!([["Temperature", "0"], ["Most tokens", tokens.to_string()]]));
    say(browser, prompt);
    browser.until(&format!("{ANSWERS}.length === 1"));
    words(browser.value(&format!("{ANSWERS}[0]")).as_str().unwrap())
}

/// Without line breaks, which Markdown moves.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn dropped_files_are_a_model() {
    let files = Files::start(&[("", &dist())]);
    let browser = Browser::open(&files.url("/index.html"));
    let nano = fs::read_dir(dist().join("models/nano")).unwrap();
    let nano: Vec<PathBuf> = nano.map(|file| file.unwrap().path().canonicalize().unwrap()).collect();
    drop_files(&browser, &nano);
    browser.until("document.querySelector('[data-testid=model-info]')?.innerText.includes('step3')");
    let download = "document.querySelector('[data-testid=model-download]').dataset.value";
    assert_eq!(browser.value(download), "0", "they are read where they are");
    tab::load(&browser, "model of this machine", "cpu");
    assert_eq!(ask(&browser, PROMPT, 24), words(&native(PROMPT, 24)));

    // What is no model is told apart, and takes nothing away.
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    for (path, part) in [
        (file("notes.txt", b"To be, or not to be"), "these have no weights"),
        (file("broken.gguf", b"GGUF but no more"), "broken.gguf is damaged"),
        (file("alone.safetensors", &fs::read(nano_weights(&nano)).unwrap()), "config.json is missing"),
        (folder.path().to_owned(), "these have no weights"),
    ] {
        drop_files(&browser, &[path]);
        let told = browser.until("document.querySelector('[data-testid=model-unreadable]')?.innerText");
        assert!(told.as_str().unwrap().contains(part), "{part}: {told}");
        assert_eq!(browser.value("document.querySelector('[data-testid=model-load]')"), Value::Null);
        assert_ne!(browser.value("document.querySelector('[data-testid=model-loaded]')"), Value::Null);
    }
}

fn nano_weights(files: &[PathBuf]) -> &PathBuf {
    files.iter().find(|path| path.extension().is_some_and(|kind| kind == "safetensors")).expect("weights")
}

#[test]
fn a_dropped_gguf_is_a_model() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tiny.gguf");
    fs::write(&path, Gguf::tiny().bytes()).unwrap();
    let expected = native_of(path.to_str().unwrap(), "ab", 8);
    assert!(!expected.is_empty());
    let files = Files::start(&[("", &dist())]);
    let browser = Browser::open(&files.url("/index.html"));
    drop_files(&browser, &[path]);
    browser.until("document.querySelector('[data-testid=model-info]')?.innerText.startsWith('tiny')");
    tab::load(&browser, "tiny", "cpu");
    assert_eq!(ask(&browser, "ab", 8), words(&expected));
}

#[test]
fn a_loaded_model_is_unloaded_and_deleted() {
    let files = Files::start(&[("", &dist())]);
    let browser = Browser::open(&files.url("/index.html"));
    tab::choose(&browser, "nano");
    tab::load(&browser, "nano", "cpu");
    let said = ask(&browser, PROMPT, 8);
    show(&browser, "models");
    browser.click("[data-testid=stored-nano] [data-testid=stored-delete]");
    browser.until(
        "document.querySelector('[data-testid=stored-delete-sure]')?.innerText === 'Unload and delete'",
    );
    browser.click("[data-testid=stored-delete-sure]");
    browser.until("!document.querySelector('[data-testid=stored-nano], [data-testid=model-loaded]')");
    let left = "
        const models = await (await navigator.storage.getDirectory()).getDirectoryHandle('models');
        return await Array.fromAsync(models.keys());";
    assert_eq!(browser.run(left, &Value::Null), json!([]));
    show(&browser, "");
    browser.until("document.querySelector('[data-testid=no-model]')");
    assert_eq!(
        words(browser.value(&format!("{ANSWERS}[0]")).as_str().unwrap()),
        said,
        "the conversation is kept"
    );
    // It can be had again.
    tab::choose(&browser, "nano");
    let download = "Number(document.querySelector('[data-testid=model-download]').dataset.value)";
    assert!(browser.value(download).as_f64() > Some(1e7));
    tab::load(&browser, "nano", "cpu");
}
