#include "detector.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include <nlohmann/json.hpp>

namespace padim {
namespace {

using nlohmann::json;

Ort::Env made_environment() {
  // A library that is older than the headers gives no functions at all: nothing may be called before.
  if (OrtGetApiBase()->GetApi(ORT_API_VERSION) == nullptr) {
    throw std::runtime_error(std::string("ONNX Runtime ") + OrtGetApiBase()->GetVersionString() +
                             " is older than the headers this was built with: install 1." +
                             std::to_string(ORT_API_VERSION) + " or later");
  }
  return Ort::Env(ORT_LOGGING_LEVEL_FATAL, "padim"); // errors are thrown
}

Ort::Session opened(Ort::Env& environment, const std::filesystem::path& file, int threads) {
  Ort::SessionOptions options;
  options.SetIntraOpNumThreads(threads);
  return Ort::Session(environment, file.c_str(), options);
}

// The value of a key in the file's metadata; null if it has none.
json metadata(const Ort::ModelMetadata& model, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  const auto text = model.LookupCustomMetadataMapAllocated(key, allocator);
  return text ? json::parse(text.get()) : json();
}

void check(bool is_sound, const std::string& what) {
  if (!is_sound) throw std::runtime_error("its metadata is damaged (" + what + "): fit it again");
}

Preprocess preprocess_of(const json& said) {
  Preprocess made{};
  made.height = said.at("size").at(0);
  made.width = said.at("size").at(1);
  const json& resize = said.at("resize");
  if (resize.is_array()) {
    made.resize_height = resize.at(0);
    made.resize_width = resize.at(1);
  } else {
    made.side = resize;
  }
  check(made.height > 0 && made.width > 0, "size is not above 0");
  check(made.side > 0 || (made.resize_height > 0 && made.resize_width > 0), "resize is not above 0");
  made.reduce = said.value("reduce", false);
  if (const auto depth = said.find("bit_depth"); depth != said.end() && !depth->is_null()) {
    made.bit_depth = depth->get<int>();
    check(*made.bit_depth >= 1 && *made.bit_depth <= 16, "bit_depth is not from 1 to 16");
  }
  return made;
}

bool has_input(const Ort::Session& session, const std::string& name) {
  Ort::AllocatorWithDefaultOptions allocator;
  for (size_t index = 0; index < session.GetInputCount(); ++index) {
    if (name == session.GetInputNameAllocated(index, allocator).get()) return true;
  }
  return false;
}

} // namespace

void Preprocess::resized(int64_t frame_height, int64_t frame_width, int64_t& rows,
                         int64_t& columns) const {
  rows = resize_height;
  columns = resize_width;
  if (side == 0) return;
  const int64_t longest = std::max(frame_height, frame_width);
  const int64_t longer = side * longest / std::min(frame_height, frame_width);
  rows = frame_height <= frame_width ? side : longer;
  columns = frame_height <= frame_width ? longer : side;
}

int Preprocess::shrink(int64_t frame_height, int64_t frame_width) const {
  if (!reduce) return 1;
  int64_t rows, columns;
  resized(frame_height, frame_width, rows, columns);
  const int64_t most = std::min(frame_height / rows, frame_width / columns);
  for (const int factor : {8, 4, 2}) {
    if (factor <= most && frame_height % factor == 0 && frame_width % factor == 0) return factor;
  }
  return 1;
}

Box Preprocess::seen(int64_t frame_height, int64_t frame_width) const {
  int64_t rows, columns;
  resized(frame_height, frame_width, rows, columns);
  // Halves to even, as torchvision's crop is rounded.
  const double top = std::nearbyint(double(rows - height) / 2);
  const double left = std::nearbyint(double(columns - width) / 2);
  const double across = double(frame_width) / double(columns);
  const double down = double(frame_height) / double(rows);
  return {left * across, top * down, (left + double(width)) * across,
          (top + double(height)) * down};
}

Detector::Detector(const std::filesystem::path& file, int threads)
    : environment_(made_environment()),
      session_(opened(environment_, file, threads)) {
  const Ort::ModelMetadata model = session_.GetModelMetadata();
  try {
    read(model);
  } catch (const json::exception& error) {
    throw std::runtime_error(std::string("its metadata is damaged (") + error.what() +
                             "): fit it again");
  }
  if (!has_input(session_, "frame")) {
    throw std::runtime_error(
        "this file takes prepared images: fit it with padim-edge fit --frame-input");
  }
}

void Detector::read(const Ort::ModelMetadata& model) {
  const json threshold = metadata(model, "padim_edge.threshold");
  if (threshold.is_null()) {
    throw std::runtime_error("this file is no detector: fit one with padim-edge fit");
  }
  const int format = metadata(model, "padim_edge.format");
  if (format != 1 && format != 2) {
    throw std::runtime_error("its format is version " + std::to_string(format) +
                             ", this program reads 1 and 2: take the example of the padim-edge "
                             "that made the file");
  }
  threshold_ = threshold;
  good_scores_ = metadata(model, "padim_edge.good_scores").get<std::vector<double>>();
  check(!good_scores_.empty(), "there are no good_scores");
  preprocess_ = preprocess_of(metadata(model, "padim_edge.preprocess"));
}

Verdict Detector::judge(const uint8_t* rgb, int64_t height, int64_t width) {
  const int64_t shape[] = {1, height, width, 3};
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  // Inputs are only read, whatever the type says.
  const Ort::Value frame = Ort::Value::CreateTensor<uint8_t>(
      memory, const_cast<uint8_t*>(rgb), size_t(height * width * 3), shape, 4);
  const char* inputs[] = {"frame"};
  const char* outputs[] = {"score", "score_map"};
  const auto results = session_.Run(Ort::RunOptions{}, inputs, &frame, 1, outputs, 2);

  const auto map = results[1].GetTensorTypeAndShapeInfo();
  const float* scores = results[1].GetTensorData<float>();
  const float* end = scores + map.GetElementCount();
  // ONNX Runtime's largest of NaN and numbers is a number.
  const bool is_sound = std::all_of(scores, end, [](float one) { return std::isfinite(one); });
  const float score = is_sound ? *results[0].GetTensorData<float>() : NAN;
  const auto below = std::upper_bound(good_scores_.begin(), good_scores_.end(), double(score));
  const bool is_number = !std::isnan(score);
  return {
      score,
      !(score <= threshold_), // a score that is not a number is no proof of a good part
      is_number ? 100.0 * double(below - good_scores_.begin()) / double(good_scores_.size()) : 0.0,
      {scores, end},
      map.GetShape().at(1),
      map.GetShape().at(2),
  };
}

} // namespace padim
