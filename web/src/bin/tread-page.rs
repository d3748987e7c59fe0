//! The user interface.

fn main() {
    console_error_panic_hook::set_once();
    tread_web::page::start();
}
