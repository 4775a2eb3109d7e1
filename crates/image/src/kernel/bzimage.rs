//! Takes the `vmlinux` out of a bzImage.
//!
//! The setup header (Linux, `Documentation/arch/x86/boot.rst`) says where, in the part of the image that
//! runs in protected mode, the compressed kernel lies. All compressions but gzip are followed by the size
//! of the decompressed kernel in four bytes.

use std::io::Read;

use super::{ImageError, lz4};
use crate::archive::{Compression, decoder};

/// The largest kernel that is accepted, decompressed.
pub(super) const LARGEST: usize = 512 << 20;

const SETUP_SECTS: usize = 0x1f1;
const SIGNATURE: usize = 0x202;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
/// The first version of the boot protocol whose header has the payload's place.
const FIRST_VERSION: u16 = 0x0208;
const SECTOR: usize = 512;

/// Whether `image` begins like a bzImage.
pub(super) fn is_bzimage(image: &[u8]) -> bool {
    image.get(SIGNATURE..SIGNATURE + 4) == Some(b"HdrS")
}

/// The decompressed kernel of a bzImage.
pub(super) fn vmlinux(image: &[u8]) -> Result<Vec<u8>, ImageError> {
    decompress(payload(image)?)
}

fn payload(image: &[u8]) -> Result<&[u8], ImageError> {
    let malformed = |problem| ImageError::Malformed { part: "the setup header", problem };
    let bytes = |at: usize, count: usize| image.get(at..at + count).ok_or(malformed("it is cut off"));
    let word = |at| Ok(bytes(at, 4)?.iter().rev().fold(0, |word, &byte| word << 8 | usize::from(byte)));
    let version = bytes(VERSION, 2)?;
    if !is_bzimage(image) || u16::from_le_bytes([version[0], version[1]]) < FIRST_VERSION {
        return Err(malformed("it is older than protocol 2.08"));
    }
    let setup_sectors = match bytes(SETUP_SECTS, 1)?[0] {
        0 => 4,
        count => usize::from(count),
    };
    let start = (setup_sectors + 1) * SECTOR + word(PAYLOAD_OFFSET)?;
    let length = word(PAYLOAD_LENGTH)?;
    start
        .checked_add(length)
        .and_then(|end| image.get(start..end))
        .ok_or(malformed("its payload lies beyond the end of the file"))
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, ImageError> {
    let malformed = |problem| ImageError::Malformed { part: "the payload", problem };
    let compression = Compression::of_magic(payload);
    if compression == Compression::Gzip {
        return read_bounded(compression, payload);
    }
    let (packed, size) = payload.split_last_chunk::<4>().ok_or(malformed("it is cut off"))?;
    let size = u32::from_le_bytes(*size) as usize;
    if compression == Compression::None && !packed.starts_with(&lz4::MAGIC) {
        return Err(ImageError::Compression);
    }
    if size > LARGEST {
        return Err(ImageError::TooLarge { limit: LARGEST });
    }
    let kernel = match compression {
        Compression::None => lz4::decompress(packed, LARGEST)?,
        known => read_bounded(known, packed)?,
    };
    if kernel.len() == size { Ok(kernel) } else { Err(malformed("it is not of the stated size")) }
}

fn read_bounded(compression: Compression, packed: &[u8]) -> Result<Vec<u8>, ImageError> {
    let mut kernel = Vec::new();
    decoder(compression, packed)
        .and_then(|reader| reader.take(LARGEST as u64 + 1).read_to_end(&mut kernel))
        .map_err(ImageError::Decompress)?;
    if kernel.len() > LARGEST { Err(ImageError::TooLarge { limit: LARGEST }) } else { Ok(kernel) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use proptest::prelude::*;

    use super::*;
    use crate::kernel::lz4::tests::compress;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 3 * SECTOR + 16];
        image[SETUP_SECTS] = 2;
        image[SIGNATURE..SIGNATURE + 4].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020fu16.to_le_bytes());
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn with_size(mut packed: Vec<u8>, size: u32) -> Vec<u8> {
        packed.extend(size.to_le_bytes());
        packed
    }

    #[test]
    fn every_known_compression_is_unpacked() {
        let kernel = b"kernel ".repeat(10_000);
        let size = kernel.len() as u32;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&kernel).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 0);
        xz.write_all(&kernel).unwrap();
        let payloads = [
            with_size(compress(&kernel), size),
            with_size(zstd::encode_all(&kernel[..], 1).unwrap(), size),
            with_size(xz.finish().unwrap(), size),
            gzip.finish().unwrap(),
        ];
        for payload in &payloads {
            assert_eq!(vmlinux(&image(payload)).unwrap(), kernel);
        }
        let wrong = with_size(compress(&kernel), size + 1);
        assert!(matches!(vmlinux(&image(&wrong)), Err(ImageError::Malformed { .. })));
        let huge = with_size(compress(&kernel), u32::MAX);
        assert!(matches!(vmlinux(&image(&huge)), Err(ImageError::TooLarge { .. })));
    }

    #[test]
    fn what_is_cut_off_or_unknown_is_refused() {
        let whole = image(&with_size(compress(b"kernel"), 6));
        for length in 0..whole.len() {
            assert!(vmlinux(&whole[..length]).is_err(), "{length}");
        }
        assert!(matches!(vmlinux(&image(b"BZh91AY&SY....")), Err(ImageError::Compression)));
        let mut old = whole.clone();
        old[VERSION] = 7;
        assert!(vmlinux(&old).is_err());
        let mut beyond = whole;
        beyond[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].fill(0xff);
        assert!(vmlinux(&beyond).is_err());
    }

    proptest! {
        #[test]
        fn any_header_is_survived(
            sectors: u8, offset: u32, length: u32, rest in proptest::collection::vec(any::<u8>(), 0..64),
        ) {
            let mut image = image(&rest);
            image[SETUP_SECTS] = sectors;
            image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&offset.to_le_bytes());
            image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
            let _ = vmlinux(&image);
        }
    }
}
