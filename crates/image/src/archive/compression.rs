//! The compressions that packages use.

use std::io::{self, BufRead, Read};

/// The most memory that a decoder may take for its dictionary.
const DECODER_MEMORY: u64 = 256 << 20;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip (RFC 1952).
    Gzip,
    /// xz.
    Xz,
    /// Zstandard (RFC 8878).
    Zstd,
}

impl Compression {
    /// What the ending of a file's name says.
    pub fn of_name(name: &str) -> Compression {
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("gz" | "tgz") => Compression::Gzip,
            Some("xz") => Compression::Xz,
            Some("zst") => Compression::Zstd,
            _ => Compression::None,
        }
    }

    /// What the first bytes of a stream say.
    pub fn of_magic(start: &[u8]) -> Compression {
        match start {
            [0x1f, 0x8b, ..] => Compression::Gzip,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Compression::Xz,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            _ => Compression::None,
        }
    }
}

/// A reader of what `reader` holds compressed. It does not bound how much that is.
pub fn decoder<'a>(compression: Compression, reader: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    Ok(match compression {
        Compression::None => Box::new(reader),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(reader)),
        Compression::Xz => {
            let stream =
                liblzma::stream::Stream::new_stream_decoder(DECODER_MEMORY, liblzma::stream::CONCATENATED)
                    .map_err(io::Error::from)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(reader, stream))
        }
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(reader)?),
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn compressed(compression: Compression, bytes: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => bytes.to_vec(),
            Compression::Gzip => {
                let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Compression::Xz => {
                let mut out = liblzma::write::XzEncoder::new(Vec::new(), 0);
                out.write_all(bytes).unwrap();
                out.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(bytes, 1).unwrap(),
        }
    }

    #[test]
    fn each_decodes_is_recognised_and_notices_truncation() {
        let text = b"one two three ".repeat(1000);
        for kind in [Compression::Gzip, Compression::Xz, Compression::Zstd] {
            let packed = compressed(kind, &text);
            assert_eq!(Compression::of_magic(&packed), kind);
            let mut out = Vec::new();
            decoder(kind, &packed[..]).unwrap().read_to_end(&mut out).unwrap();
            assert_eq!(out, text);
            let cut = &packed[..packed.len() / 2];
            assert!(decoder(kind, cut).unwrap().read_to_end(&mut Vec::new()).is_err(), "{kind:?}");
        }
        assert_eq!(Compression::of_magic(b""), Compression::None);
    }

    #[test]
    fn names_tell_the_kind() {
        for (name, kind) in [
            ("a.tar.gz", Compression::Gzip),
            ("a.tgz", Compression::Gzip),
            ("x.ko.xz", Compression::Xz),
            ("data.tar.zst", Compression::Zstd),
            ("data.tar", Compression::None),
            ("xz", Compression::None),
        ] {
            assert_eq!(Compression::of_name(name), kind, "{name}");
        }
    }
}
