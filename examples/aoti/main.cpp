// Log-densities of random images, by a package that `mixer-bijectors export --format aoti` wrote.
//
//     main model.pt2 BATCH CHANNELS HEIGHT WIDTH
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <iostream>
#include <string>
#include <vector>

int main(int argc, char** argv) {
  if (argc != 6) {
    std::cerr << "usage: main model.pt2 BATCH CHANNELS HEIGHT WIDTH\n";
    return 2;
  }
  std::vector<int64_t> shape;
  for (int i = 2; i < argc; ++i) shape.push_back(std::stoll(argv[i]));
  torch::NoGradGuard no_grad;
  torch::inductor::AOTIModelPackageLoader model(argv[1]);
  // Images are numbers in [-1, 1); these run evenly through the interval.
  int64_t count = 1;
  for (auto size : shape) count *= size;
  auto images = (2 * torch::arange(count) / static_cast<double>(count) - 1).to(torch::kFloat).view(shape);
  std::cout.precision(9);
  auto log_prob = model.run({images})[0];
  for (int64_t i = 0; i < log_prob.size(0); ++i) std::cout << log_prob[i].item<float>() << "\n";
}
