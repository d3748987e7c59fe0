//! Tells cargo what it cannot see: that the page in `web/dist`, which the binary contains, has other files than before.

fn main() {
    println!("cargo::rerun-if-changed=../web/dist");
}
