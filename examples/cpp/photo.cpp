#include "photo.hpp"

#include <cerrno>
#include <csetjmp>
#include <cstring>
#include <fstream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>

#include <png.h>
#include <turbojpeg.h>

namespace padim {
namespace {

using Bytes = std::vector<uint8_t>;

// As padim-edge: more pixels than this are refused before they are decoded.
constexpr int64_t kMostPixels = 178'956'970;

[[noreturn]] void damaged(const std::string& why) {
  throw std::runtime_error("cannot be decoded (" + why +
                           "): it is damaged or truncated, replace or remove it");
}

void check_size(int64_t height, int64_t width) {
  if (height * width > kMostPixels) {
    throw std::runtime_error("has too many pixels (" + std::to_string(width) + " x " +
                             std::to_string(height) + "); at most " +
                             std::to_string(kMostPixels) + " are allowed: scale it down");
  }
}

Bytes contents(const std::filesystem::path& file) {
  if (std::filesystem::is_directory(file)) {
    throw std::runtime_error("cannot be read (it is a folder): give image files");
  }
  errno = 0;
  std::ifstream stream(file, std::ios::binary);
  Bytes bytes{std::istreambuf_iterator<char>(stream), {}};
  if (!stream.is_open() || stream.bad() || (bytes.empty() && errno != 0)) {
    throw std::runtime_error(std::string("cannot be read (") + std::strerror(errno) +
                             "): give an image file that exists and is readable");
  }
  return bytes;
}

// EXIF's orientation, 1 to 8, of a block in TIFF's format; 1 where it says none.
int orientation_of(const uint8_t* tiff, size_t length) {
  if (length < 8 || (std::memcmp(tiff, "II*\0", 4) != 0 && std::memcmp(tiff, "MM\0*", 4) != 0)) {
    return 1;
  }
  const bool big = tiff[0] == 'M';
  const auto number = [&](size_t at, size_t bytes) {
    size_t value = 0;
    for (size_t i = 0; i < bytes; ++i) value |= size_t(tiff[at + (big ? bytes - 1 - i : i)]) << (8 * i);
    return value;
  };
  const size_t directory = number(4, 4);
  if (directory > length - 2) return 1;
  for (size_t entry = 0; entry < number(directory, 2); ++entry) {
    const size_t at = directory + 2 + 12 * entry;
    if (at + 12 > length) return 1;
    if (number(at, 2) == 0x0112 && number(at + 2, 2) == 3) {
      const size_t said = number(at + 8, 2);
      return said >= 1 && said <= 8 ? int(said) : 1;
    }
  }
  return 1;
}

int orientation_of_jpeg(const Bytes& bytes) {
  for (size_t at = 2; at + 4 <= bytes.size() && bytes[at] == 0xFF;) {
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xFF) { // padding
      ++at;
      continue;
    }
    const size_t length = size_t(bytes[at + 2]) << 8 | bytes[at + 3]; // with its own two bytes
    if (marker == 0xDA || length < 2 || at + 2 + length > bytes.size()) break;
    const uint8_t* body = bytes.data() + at + 4;
    if (marker == 0xE1 && length >= 8 && std::memcmp(body, "Exif\0\0", 6) == 0) {
      return orientation_of(body + 6, length - 8);
    }
    at += 2 + length;
  }
  return 1;
}

Photo upright(Photo photo, int orientation) {
  if (orientation == 1) return photo;
  const int64_t w = photo.width, h = photo.height;
  const bool swaps = orientation >= 5;
  Photo turned{swaps ? w : h, swaps ? h : w, Bytes(photo.rgb.size())};
  uint8_t* to = turned.rgb.data();
  for (int64_t y = 0; y < turned.height; ++y) {
    for (int64_t x = 0; x < turned.width; ++x, to += 3) {
      int64_t column = swaps ? y : x, row = swaps ? x : y;
      if (orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8) {
        column = w - 1 - column;
      }
      if (orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7) {
        row = h - 1 - row;
      }
      std::memcpy(to, &photo.rgb[size_t(3 * (row * w + column))], 3);
    }
  }
  return turned;
}

// The calls of Pillow's reader: exact cosines, smooth chroma, so that the pixels are the same.
Photo read_jpeg(const Bytes& bytes, const Preprocess& preprocess) {
  const std::unique_ptr<void, int (*)(tjhandle)> handle(tjInitDecompress(), tjDestroy);
  if (!handle) throw std::bad_alloc();
  int width, height, chroma, colours;
  const auto size = static_cast<unsigned long>(bytes.size());
  if (tjDecompressHeader3(handle.get(), bytes.data(), size, &width, &height, &chroma, &colours)) {
    damaged(tjGetErrorStr2(handle.get()));
  }
  if (colours == TJCS_CMYK || colours == TJCS_YCCK) {
    throw std::runtime_error("has CMYK pixels; greyscale and RGB are allowed: convert it");
  }
  check_size(height, width);
  const int orientation = orientation_of_jpeg(bytes);
  // As large as it is once it is upright.
  const int factor =
      orientation >= 5 ? preprocess.shrink(width, height) : preprocess.shrink(height, width);
  Photo photo{height / factor, width / factor, {}};
  photo.rgb.resize(size_t(3 * photo.height * photo.width));
  const int flags = TJFLAG_ACCURATEDCT | TJFLAG_STOPONWARNING | TJFLAG_LIMITSCANS;
  if (tjDecompress2(handle.get(), bytes.data(), size, photo.rgb.data(), int(photo.width), 0,
                    int(photo.height), TJPF_RGB, flags)) {
    damaged(tjGetErrorStr2(handle.get()));
  }
  return upright(std::move(photo), orientation);
}

// libpng's reader. It tells of errors by longjmp, which runs no destructors: what is allocated
// belongs to the object, and the functions that call libpng have nothing to destroy.
class PngReader {
 public:
  explicit PngReader(const Bytes& bytes) : bytes_(bytes) {
    png_ = png_create_read_struct(PNG_LIBPNG_VER_STRING, this, on_error, on_warning);
    info_ = png_ ? png_create_info_struct(png_) : nullptr;
    if (!info_) {
      png_destroy_read_struct(&png_, nullptr, nullptr);
      throw std::bad_alloc();
    }
    png_set_read_fn(png_, this, on_read);
  }
  PngReader(const PngReader&) = delete;
  PngReader& operator=(const PngReader&) = delete;
  ~PngReader() { png_destroy_read_struct(&png_, &info_, nullptr); }

  Photo read(const Preprocess& preprocess) {
    if (!read_head()) damaged(error_);
    const int64_t height = png_get_image_height(png_, info_);
    const int64_t width = png_get_image_width(png_, info_);
    check_size(height, width);
    const bool is_wide = png_get_bit_depth(png_, info_) == 16 &&
                         png_get_color_type(png_, info_) == PNG_COLOR_TYPE_GRAY;
    const int64_t row = width * (is_wide ? 2 : 3);
    pixels_.resize(size_t(height * row));
    rows_.resize(size_t(height));
    for (int64_t y = 0; y < height; ++y) rows_[size_t(y)] = pixels_.data() + y * row;
    if (!read_rows(is_wide, size_t(row))) damaged(error_);
    if (is_wide) narrow(preprocess.bit_depth.value_or(16));
    png_uint_32 length = 0;
    png_bytep exif = nullptr;
    const bool has_exif = png_get_eXIf_1(png_, info_, &length, &exif) != 0;
    const int orientation = has_exif ? orientation_of(exif, length) : 1;
    return upright({height, width, std::move(pixels_)}, orientation);
  }

 private:
  bool read_head() {
    if (setjmp(png_jmpbuf(png_))) return false;
    png_read_info(png_, info_);
    return true;
  }

  bool read_rows(bool is_wide, size_t row) {
    if (setjmp(png_jmpbuf(png_))) return false;
    if (!is_wide) {
      png_set_expand_gray_1_2_4_to_8(png_);
      png_set_palette_to_rgb(png_);
      png_set_strip_16(png_);
      png_set_strip_alpha(png_);
      png_set_gray_to_rgb(png_);
    }
    png_set_interlace_handling(png_);
    png_read_update_info(png_, info_);
    if (png_get_rowbytes(png_, info_) != row) png_error(png_, "rows of another length");
    png_read_image(png_, rows_.data());
    png_read_end(png_, info_);
    return true;
  }

  // Grey values of 16 bits, big end first, to RGB of 8; white is what the camera's bits hold.
  void narrow(int bit_depth) {
    const uint32_t white = (1u << bit_depth) - 1;
    Bytes rgb(pixels_.size() / 2 * 3);
    for (size_t i = 0; i < pixels_.size() / 2; ++i) {
      const uint32_t value = uint32_t(pixels_[2 * i]) << 8 | pixels_[2 * i + 1];
      if (value > white) {
        throw std::runtime_error("has values of " + std::to_string(value) + ", and " +
                                 std::to_string(bit_depth) + " bits hold up to " +
                                 std::to_string(white) +
                                 ": fit with the --bit-depth that the camera has");
      }
      std::memset(&rgb[3 * i], int((value * 255 + white / 2) / white), 3);
    }
    pixels_ = std::move(rgb);
  }

  static void on_error(png_structp png, png_const_charp said) {
    static_cast<PngReader*>(png_get_error_ptr(png))->error_.assign(said);
    png_longjmp(png, 1);
  }

  static void on_warning(png_structp, png_const_charp) {}

  static void on_read(png_structp png, png_bytep to, size_t count) {
    auto* self = static_cast<PngReader*>(png_get_io_ptr(png));
    if (count > self->bytes_.size() - self->at_) png_error(png, "the file ends too early");
    std::memcpy(to, self->bytes_.data() + self->at_, count);
    self->at_ += count;
  }

  const Bytes& bytes_;
  size_t at_ = 0;
  png_structp png_ = nullptr;
  png_infop info_ = nullptr;
  std::string error_;
  Bytes pixels_;
  std::vector<png_bytep> rows_;
};

} // namespace

Photo read_photo(const std::filesystem::path& file, const Preprocess& preprocess) {
  const Bytes bytes = contents(file);
  const auto begins = [&](const char* with, size_t length) {
    return bytes.size() >= length && std::memcmp(bytes.data(), with, length) == 0;
  };
  if (begins("\xFF\xD8\xFF", 3)) return read_jpeg(bytes, preprocess);
  if (begins("\x89PNG\r\n\x1A\n", 8)) return PngReader(bytes).read(preprocess);
  throw std::runtime_error(bytes.empty() ? "the file is empty: replace or remove it"
                                         : "is no JPEG or PNG: convert or remove it");
}

void write_png(const std::filesystem::path& file, const Photo& photo) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = png_uint_32(photo.width);
  image.height = png_uint_32(photo.height);
  image.format = PNG_FORMAT_RGB;
  if (!png_image_write_to_file(&image, file.string().c_str(), 0, photo.rgb.data(), 0, nullptr)) {
    throw std::runtime_error(file.string() + ": cannot be written (" + image.message + ")");
  }
}

} // namespace padim
