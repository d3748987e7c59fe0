//! What every view keeps to: no errors, nobody else's servers, readable by everybody, on every screen.

use std::{env, fs};

use serde_json::{Value, json};
use tread_tests::browser::Browser;

use super::{import, monitor, server, show, tab};

const VIEWS: [&str; 5] = ["", "monitor", "models", "device", "bench"];
const TAB: &str = "\u{e004}";
const ENTER: &str = "\u{e007}";

#[test]
fn it_loads_without_complaints_and_asks_nobody_else() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    for view in VIEWS {
        show(&browser, view);
    }
    browser.goto(&server.url("/monitor"));
    browser.until("document.querySelector('nav a[aria-current=page]')?.hash === '#/monitor'");
    assert_eq!(browser.complaints(), Vec::<String>::new());
    let requests = browser.requests();
    assert!(requests.iter().any(|url| url.ends_with("page_bg.wasm")), "{requests:?}");
    let own = |url: &&String| {
        url.starts_with(&server.url("/")) || url.starts_with("data:") || url.starts_with("blob:")
    };
    let foreign: Vec<_> = requests.iter().filter(|url| !own(url)).collect();
    assert!(foreign.is_empty(), "{foreign:?}");
}

#[test]
fn everybody_can_use_it() {
    let axe = env::var("TREAD_AXE").expect("`cargo xtask test` installs axe-core and sets TREAD_AXE");
    let axe = fs::read_to_string(axe).unwrap();
    let server = server();
    let browser = Browser::open(&server.url("/"));
    browser.run(&axe, &Value::Null);
    fill(&browser);
    for dark in [false, true] {
        browser.emulate((1280, 800), dark);
        for view in VIEWS {
            complete(&browser, view);
            let check = "
                const { violations } = await axe.run(document, { resultTypes: ['violations'] });
                const grave = violations.filter(({ impact }) => impact === 'serious' || impact === 'critical');
                return grave.map(({ id, nodes }) => [id, ...nodes.map((node) => node.html + ' ' + node.failureSummary)]);";
            assert_eq!(browser.run(check, &Value::Null), json!([]), "#/{view}, dark: {dark}");
        }
    }
}

/// Gives every view something to show.
fn fill(browser: &Browser) {
    import(browser);
    show(browser, "monitor");
    monitor::connect(browser);
    let step = "document.querySelector('[data-testid=monitor-timeline] rect.op')";
    monitor::keep_asking(browser, &format!("!!{step}"));
    tab::choose(browser, "nano");
}

/// Shows a view, complete.
fn complete(browser: &Browser, view: &str) {
    show(browser, view);
    match view {
        "monitor" => monitor::connect(browser),
        "device" => {
            browser.until("document.querySelector('[data-testid=device-limits]')");
        }
        _ => {}
    }
}

#[test]
fn it_fits_on_small_screens() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    fill(&browser);
    for width in [360, 390, 768, 1280] {
        browser.emulate((width, 800), false);
        for view in VIEWS {
            complete(&browser, view);
            let needed = browser.value("document.documentElement.scrollWidth");
            assert!(needed.as_u64() <= Some(width.into()), "#/{view} is {needed} wide on {width}");
            // What scrolls is inside of the page.
            let height = browser.value("document.documentElement.scrollHeight");
            assert!(height.as_u64() <= Some(800), "#/{view} is {height} high on {width}");
        }
    }
}

#[test]
fn the_keyboard_is_enough() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    show(&browser, "");
    for view in ["monitor", "models", "device", "bench"] {
        let there = format!("document.activeElement?.hash === '#/{view}'");
        let presses = (0..60).take_while(|_| {
            browser.press(TAB);
            browser.value(&there) != true
        });
        assert!(presses.count() < 60, "Tab never reaches the link to #/{view}");
        browser.press(ENTER);
        browser.until(&format!("document.querySelector('nav a[aria-current=page]')?.hash === '#/{view}'"));
    }
}

#[test]
fn colours_follow_the_system_until_they_are_chosen() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    let offers = |colours: &str| {
        let label = "document.querySelector('[data-testid=theme]')?.ariaLabel";
        browser.until(&format!("{label} === 'Use {colours} colours'"));
    };
    for dark in [true, false] {
        browser.emulate((1280, 800), dark);
        offers(if dark { "light" } else { "dark" });
    }
    browser.click("[data-testid=theme]");
    offers("light");
    // Dark was chosen: it stays, whatever the system does.
    browser.emulate((1280, 800), true);
    browser.emulate((1280, 800), false);
    offers("light");
}

/// For the README and the other documents.
#[test]
fn pictures() {
    if env::var_os("TREAD_SCREENSHOTS").is_some() {
        views();
        pools();
    }
}

/// The monitor of two pools, from the pipeline on.
fn pools() {
    let server = monitor::two_pools();
    let browser = Browser::open(&server.url("/"));
    browser.devtools("Emulation.setScrollbarsHidden", &json!({ "hidden": true }));
    show(&browser, "monitor");
    monitor::connect(&browser);
    monitor::keep_asking(&browser, "document.querySelector('[data-testid=monitor-replay]')?.dataset.step");
    for (scheme, dark) in [("light", false), ("dark", true)] {
        browser.emulate((1280, 800), dark);
        browser
            .run("document.querySelector('[data-testid=monitor-pipeline]').scrollIntoView();", &Value::Null);
        let at =
            |stage: &str| format!("document.querySelector('[data-testid=micro-batch][data-stage={stage}]')");
        browser.until(&format!("{} && {}", at("ffn"), at("a2f")));
        browser.picture(&format!("afd-{scheme}-1280"));
    }
}

/// Every view with something in it.
fn views() {
    let server = server();
    let browser = Browser::open(&server.url("/"));
    browser.devtools("Emulation.setScrollbarsHidden", &json!({ "hidden": true }));
    fill(&browser);
    tab::load(&browser, "nano", "gpu");
    for (scheme, dark) in [("light", false), ("dark", true)] {
        for (width, height) in [(1280, 800), (390, 844)] {
            browser.emulate((width, height), dark);
            for view in ["", "monitor", "models", "device"] {
                complete(&browser, view);
                match view {
                    // All of it, and so that the last minute fills it.
                    "monitor" => {
                        browser.run("document.querySelector('.choice input').click();", &Value::Null);
                        monitor::keep_asking(&browser, "seen.size > 20");
                        let whole = browser.value("document.querySelector('.view').scrollHeight + 100");
                        browser.emulate((width, whole.as_u64().unwrap().try_into().unwrap()), dark);
                    }
                    "models" => tab::choose(&browser, "nano"),
                    _ => {}
                }
                let name = if view.is_empty() { "chat" } else { view };
                browser.picture(&format!("{name}-{scheme}-{width}"));
                browser.emulate((width, height), dark);
            }
        }
    }
}
