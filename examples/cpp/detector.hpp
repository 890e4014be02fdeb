// A detector from a padim.onnx that was fitted with --frame-input: its graph takes frames as they
// are. All that an application needs; it knows of no files but that one.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

#include <onnxruntime_cxx_api.h>

namespace padim {

// Pixels of a frame, [left, right) x [top, bottom).
struct Box {
  double left, top, right, bottom;
};

// What the graph does with a frame, as the file says it: for those who want to know beforehand.
struct Preprocess {
  int64_t height, width;                       // of what it sees
  int64_t resize_height = 0, resize_width = 0; // to which a frame is resized; 0: by `side`
  int64_t side = 0;                            // that the shorter side gets; 0: as above
  bool reduce = false;                         // whether JPEG files may be decoded smaller
  std::optional<int> bit_depth;                // of grey values of 16 bits; none: all 16

  // By how much padim-edge decodes a JPEG of this size smaller: 1, 2, 4 or 8.
  int shrink(int64_t frame_height, int64_t frame_width) const;
  // The part of a frame that the graph sees, and its score map covers.
  Box seen(int64_t frame_height, int64_t frame_width) const;

 private:
  void resized(int64_t frame_height, int64_t frame_width, int64_t& rows, int64_t& columns) const;
};

struct Verdict {
  float score;                  // NaN, and anomalous, if a value of the map is not finite
  bool is_anomalous;
  double percentile;            // per cent of the good images of the fit that score no higher
  std::vector<float> map;       // map_height rows of map_width scores
  int64_t map_height, map_width;
};

// `judge` may be called from several threads at once.
class Detector {
 public:
  // threads: of a run; 0 for all cores. Throws std::runtime_error, Ort::Exception.
  explicit Detector(const std::filesystem::path& file, int threads = 0);

  // rgb: height * width * 3 values, row by row without gaps. Throws Ort::Exception.
  Verdict judge(const uint8_t* rgb, int64_t height, int64_t width);

  double threshold() const { return threshold_; }
  const Preprocess& preprocess() const { return preprocess_; }

 private:
  void read(const Ort::ModelMetadata& model);

  Ort::Env environment_;
  Ort::Session session_;
  double threshold_ = 0;
  std::vector<double> good_scores_; // ascending
  Preprocess preprocess_;
};

} // namespace padim
