//! Compiles librdkafka's `rdkafka_fetcher.c` once more with a missing line put in, and links it in the place of the original
//! (docs/adr/0017).
//!
//! The object stands before librdkafka's archive, so a linker finds everything that the original has to offer and leaves that
//! one out. Were it the other way about, it would refuse to link names that are defined twice.

use std::path::PathBuf;
use std::{env, fs};

/// The end of the loop over topics with new leaders: all partitions whose leader is known have been filled in.
const FILLED: &str = "changed_topic++;";
/// What the list is to hold: what was filled in, and not what was counted before.
const COUNT: &str = "md->topics[changed_topic].partition_cnt = changed_partition;";

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let built = PathBuf::from(env::var_os("DEP_RDKAFKA_ROOT").expect("rdkafka-sys says where it built librdkafka"));
    let sources = built.join("src");
    let fetcher = sources.join("rdkafka_fetcher.c");
    let text = fs::read_to_string(&fetcher).unwrap_or_else(|error| panic!("{}: {error}", fetcher.display()));
    assert!(
        text.matches(FILLED).count() == 1 && !text.contains(COUNT),
        "{} is not the one that needs mending: read docs/adr/0017 and see whether this crate still does",
        fetcher.display()
    );
    let mended = PathBuf::from(env::var_os("OUT_DIR").expect("Cargo sets it")).join("rdkafka_fetcher.c");
    fs::write(&mended, text.replace(FILLED, &format!("{COUNT} {FILLED}"))).expect("Cargo's folder can be written to");
    cc::Build::new()
        .file(mended)
        .include(sources)
        .include(built)
        .opt_level(2)
        .warnings(false)
        .link_lib_modifier("+whole-archive")
        .compile("eshaar_rdkafka_fetcher");
}
