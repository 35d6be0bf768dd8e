//! Sizes of memory and disks, as they are written and read.

/// One mebibyte, in bytes.
pub(crate) const MIB: u64 = 1 << 20;
/// One gibibyte, in bytes.
pub(crate) const GIB: u64 = 1 << 30;

/// Reads a size in bytes: an integer or a decimal, then `K`, `M` or `G` with `B` or `iB` after it if at all; or
/// an integer of bytes. 1024 is the factor in every spelling.
pub(crate) fn parse(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let without_b = lower.strip_suffix("ib").or_else(|| lower.strip_suffix('b')).unwrap_or(&lower);
    let (number, factor) = match without_b.chars().last()? {
        'k' => (&without_b[..without_b.len() - 1], 1 << 10),
        'm' => (&without_b[..without_b.len() - 1], MIB),
        'g' => (&without_b[..without_b.len() - 1], GIB),
        _ if lower.ends_with("ib") => return None,
        _ => (without_b, 1),
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match number.split_once('.') {
        None if digits(number) => number.parse::<u64>().ok()?.checked_mul(factor),
        // A decimal of bytes is none.
        Some((whole, part)) if factor > 1 && digits(whole) && digits(part) => {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
            let bytes = (number.parse::<f64>().ok()? * factor as f64) as u64;
            Some(bytes)
        }
        _ => None,
    }
}

/// What is said of a text that is no size.
pub(crate) fn complaint(text: &str) -> String {
    format!(
        "{text} is not a valid memory size - need a non-negative integer (in base 10) or a decimal followed by K, M, \
         or G (e.g. 1234B, 42MiB, 0.5G)"
    )
}

/// Writes a size with one decimal, which loses the rest.
pub(crate) fn human(bytes: u64) -> String {
    let (factor, unit) = match bytes {
        GIB.. => (GIB, "GiB"),
        MIB..GIB => (MIB, "MiB"),
        0x400..MIB => (0x400, "KiB"),
        _ => return format!("{bytes}B"),
    };
    let tenths = (bytes * 10 + factor / 2) / factor;
    format!("{}.{}{unit}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_every_spelling() {
        for (text, bytes) in [("1G", GIB), ("1.5GiB", 3 * GIB / 2), ("512m", 512 * MIB), ("1073741824", GIB)] {
            assert_eq!(parse(text), Some(bytes), "{text}");
        }
        assert_eq!((parse("640MiB"), parse("1234B"), parse("0")), (Some(640 * MIB), Some(1234), Some(0)));
        for text in ["1T", "1.5", "-1G", "abc", "1.5.5G", "", "1X", "1T1", "G", "1iB"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn sizes_are_written_with_one_decimal() {
        let told = [human(GIB), human(512 * MIB), human(3 * GIB / 2), human(4_900_000_000)];
        assert_eq!(told, ["1.0GiB", "512.0MiB", "1.5GiB", "4.6GiB"]);
    }
}
