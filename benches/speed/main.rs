//! `make bench`.
mod core;
mod load;
mod stats;

fn main() {
    for n in [1_000, 10_000, 100_000] {
        let row = core::measure(n, 5);
        println!("{}", serde_json::to_string(&row).expect("rows are JSON"));
    }
}
