#![no_main]
libfuzzer_sys::fuzz_target!(|bytes: &[u8]| vm_agent_fuzz_targets::run("archives", bytes));
