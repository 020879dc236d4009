// Runs an exported folder as ALICE O2's fast simulation of the ZDC does (Detectors/ZDC/fastsimulation): ONNX Runtime, one
// thread, batches of one, dynamic dimensions set to 1; the classifier first, then noise and standardized features to an image.
//
//   o2_client FOLDER zn|zp PRIMARIES.csv [RESPONSES [SEED]] > answers.csv
//
// A line of the answers has the ten normals, the five channels' sums as O2's getPhotonsPerChannel has them, and all pixels,
// x by x; the dark ones of a response that the classifier spares are zeros.
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using Features = std::array<float, 9>;

// A model with the scales of its features.
class Model
{
 public:
  Model(Ort::Env& env, const std::string& stem) : mSession(env, (stem + ".onnx").c_str(), options())
  {
    std::ifstream file(stem + "_scales.txt");
    for (auto* numbers : {&mMeans, &mScales}) {
      std::string line;
      std::getline(file, line);  // #means, #scales
      for (float& number : *numbers) {
        std::getline(file, line);
        number = std::stof(line);
      }
      std::getline(file, line);  // empty
    }
  }

  // Output 0, flat, of inputs by their order.
  std::vector<float> run(std::vector<std::vector<float>> inputs)
  {
    Ort::AllocatorWithDefaultOptions allocator;
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    std::vector<Ort::AllocatedStringPtr> names;
    std::vector<const char*> raw;
    std::vector<Ort::Value> values;
    for (size_t i = 0; i < inputs.size(); ++i) {
      auto shape = mSession.GetInputTypeInfo(i).GetTensorTypeAndShapeInfo().GetShape();
      std::replace_if(shape.begin(), shape.end(), [](int64_t d) { return d < 0; }, 1);
      raw.push_back(names.emplace_back(mSession.GetInputNameAllocated(i, allocator)).get());
      values.push_back(Ort::Value::CreateTensor<float>(memory, inputs[i].data(), inputs[i].size(), shape.data(), shape.size()));
    }
    auto output = mSession.GetOutputNameAllocated(0, allocator);
    const char* wanted = output.get();
    auto made = mSession.Run(Ort::RunOptions{nullptr}, raw.data(), values.data(), values.size(), &wanted, 1);
    const float* data = made[0].GetTensorData<float>();
    return {data, data + made[0].GetTensorTypeAndShapeInfo().GetElementCount()};
  }

  std::vector<float> standardized(const Features& given) const
  {
    std::vector<float> values(given.size());
    for (size_t i = 0; i < given.size(); ++i) {
      values[i] = (given[i] - mMeans[i]) / mScales[i];
    }
    return values;
  }

 private:
  static Ort::SessionOptions options()
  {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(1);
    return options;
  }

  Ort::Session mSession;
  Features mMeans{}, mScales{};
};

// Primaries of a CSV with calosim's columns in any order, in O2's units: charges in |e|/3.
std::vector<Features> primaries(const std::string& path)
{
  const std::array<std::string, 9> wanted{"energy", "vx", "vy", "vz", "px", "py", "pz", "mass", "charge"};
  std::ifstream file(path);
  std::string line, field;
  std::vector<std::string> header;
  std::getline(file, line);
  for (std::istringstream fields(line); std::getline(fields, field, ',');) {
    header.push_back(field);
  }
  std::vector<Features> rows;
  while (std::getline(file, line)) {
    std::vector<std::string> values;
    for (std::istringstream fields(line); std::getline(fields, field, ',');) {
      values.push_back(field);
    }
    Features row{};
    for (size_t i = 0; i < wanted.size(); ++i) {
      const size_t column = std::find(header.begin(), header.end(), wanted[i]) - header.begin();
      if (column >= values.size()) {
        throw std::runtime_error(path + ": line " + std::to_string(rows.size() + 2) + ": has no " + wanted[i]);
      }
      row[i] = std::stof(values[column]);
    }
    row[8] *= 3;
    rows.push_back(row);
  }
  return rows;
}

int main(int argc, char** argv)
try {
  const std::vector<std::string> words(argv + 1, argv + argc);
  if (words.size() < 3 || (words[1] != "zn" && words[1] != "zp")) {
    throw std::runtime_error("expected FOLDER zn|zp PRIMARIES.csv [RESPONSES [SEED]]");
  }
  const bool neutron = words[1] == "zn";
  const int nx = neutron ? 44 : 56, ny = neutron ? 44 : 30, responses = words.size() > 3 ? std::stoi(words[3]) : 1;
  std::mt19937 generator(words.size() > 4 ? std::stoul(words[4]) : 1);
  std::normal_distribution<float> normal;
  Ort::Env env(ORT_LOGGING_LEVEL_WARNING, "o2_client");
  Model image(env, words[0] + "/generator");
  std::vector<Model> classifier;
  if (std::filesystem::exists(words[0] + "/classifier.onnx")) {
    classifier.emplace_back(env, words[0] + "/classifier");
  }
  for (const auto& primary : primaries(words[2])) {
    const bool lit = classifier.empty() || std::round(classifier[0].run({classifier[0].standardized(primary)})[0]) != 0;
    for (int response = 0; response < responses; ++response) {
      std::vector<float> noise(10);
      std::generate(noise.begin(), noise.end(), [&] { return normal(generator); });
      std::vector<float> output = lit ? image.run({noise, image.standardized(primary)}) : std::vector<float>(nx * ny);
      std::array<long, 5> channels{};
      std::ostringstream pixels;
      for (int x = 0; x < nx; ++x) {
        for (int y = 0; y < ny; ++y) {
          const int photons = static_cast<int>(std::expm1(output.at(nx * y + x)));
          const int tower = neutron ? 1 + (x >= nx / 2) + 2 * (y >= ny / 2) : 4 * x / nx + 1;
          channels[(x + y) % 2 == 0 ? 0 : tower] += photons;
          pixels << ',' << photons;
        }
      }
      for (const float z : noise) {
        std::printf("%.9g,", z);
      }
      std::printf("%ld,%ld,%ld,%ld,%ld%s\n", channels[0], channels[1], channels[2], channels[3], channels[4], pixels.str().c_str());
    }
  }
} catch (const std::exception& error) {
  std::cerr << "o2_client: error: " << error.what() << '\n';
  return 2;
}
