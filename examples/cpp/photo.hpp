// Photos from JPEG and PNG files, decoded as padim-edge decodes them; pictures into PNG files.
#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "detector.hpp"

namespace padim {

struct Photo {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> rgb; // row by row without gaps
};

// Upright, without alpha. `preprocess` says how much smaller a JPEG is decoded, and what is white
// in 16 bits. Throws std::runtime_error: no such file, no JPEG or PNG, damaged or too large.
Photo read_photo(const std::filesystem::path& file, const Preprocess& preprocess);

// Throws std::runtime_error.
void write_png(const std::filesystem::path& file, const Photo& photo);

} // namespace padim
